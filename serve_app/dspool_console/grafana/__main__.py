"""`python -m dspool_console.grafana` writes the dashboards anew."""

from dspool_console.grafana import DASHBOARDS, as_json

for dashboard in DASHBOARDS:
    dashboard.file.write_text(as_json(dashboard))
    print(f"wrote {dashboard.file}")
