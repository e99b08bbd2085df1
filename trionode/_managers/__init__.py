"""Cert managers: build contexts, check them, publish them as generations, and follow a source.

Begin with `publisher`, which `manager` and `auth_manager` make public. A rotation is `CertManager.update`; which live
peers new trust would strand is worked out in `trust`.
"""
