"""What `floodsearch init` writes: a study file and a script of each kind, small and whole, to be changed."""
