"""`python -m dspool_serve.alerts` writes the rule file anew."""

from dspool_serve.alerts import FILE, rules

FILE.write_text(rules())
print(f"wrote {FILE}")
