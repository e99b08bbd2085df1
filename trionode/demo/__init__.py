"""The demo behind `trionode demo`: nodes in separate processes, steady traffic, and a certificate rotated under it.

`roles`
    the programs: alpha, beta and their visitors, as an application would write them, on the public names of `trionode`
    alone. Start reading there.
`said`
    what those processes tell, one JSON object a line.
`checks`
    what was seen, and what it shows.
`story`
    the operator: makes the certificates, starts the processes, tells them what to do, and asks what they see.

`python -m trionode.demo ROLE …` plays a role. POSIX only, for the pipes.
"""
