"""Key pairs, CA pools, revocation lists and the policy of a handshake: immutable values, parsed at the edge."""
