"""One file per policy, pure; `policies.registry` maps names to them."""
