"""What the commands run: `python -m sbs_jax.X` reads runs/X.gin and calls programs/X.py.

A program joins the other rooms. It imports all that it needs, TensorFlow included; `sbs_jax/X.py`
is only its command line, which starts quickly and checks the flags first.
"""
