"""Who is who: node names, patterns over them, and the names that a certificate speaks for."""
