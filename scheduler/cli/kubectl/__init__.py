"""`kubectl haversack`: what `haversack` shows and does, in kubectl's manner.

kubectl runs any executable `kubectl-haversack` that it finds on the PATH. This one speaks to
Haversack's own API alone, with the address and token that `haversack` would use.
"""
