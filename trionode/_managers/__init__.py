"""Cert managers: build contexts, check them, publish them as generations, and follow a source.

Begin with `manager`. A rotation is `CertManager.update`; whom new trust would strand is in `trust`.
"""
