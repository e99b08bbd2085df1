"""Cert managers: build contexts, check them, publish them as generations, and follow a source.

Begin with `manager`. A rotation is `CertManager.update`; which live peers new trust would strand is worked out in
`trust`.
"""
