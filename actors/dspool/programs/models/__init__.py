"""Language models by profile, and their errors as ours."""
