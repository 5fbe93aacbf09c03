"""`python -m dspool_console.alerts` writes the rule file anew."""

from dspool_console.alerts import FILE, rules

FILE.write_text(rules())
print(f"wrote {FILE}")
