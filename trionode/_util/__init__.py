"""Small tools that know nothing of TLS or nodes."""
