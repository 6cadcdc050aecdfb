"""What a sweep showed: tables, figures and one page, `python -m sbs_jax.report`."""
