"""The demo behind `trionode demo`: nodes in separate processes, steady traffic, and a rotation in the middle of it.

`roles`
    the programs: alpha, beta and other clients, as an application would write them, with the public names of `trionode`
    only. Start reading there.
`said`
    what those processes report, one JSON object a line.
`checks`
    what was observed, and what it shows.
`story`
    the operator: makes certificates, starts the processes, gives them orders, and collects their reports.

`python -m trionode.demo ROLE …` runs one role. POSIX only, for the pipes.
"""
