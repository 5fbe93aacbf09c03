"""`python -m dspool_serve.grafana` writes the dashboards anew."""

from dspool_serve.grafana import DASHBOARDS, as_json

for dashboard in DASHBOARDS:
    dashboard.file.write_text(as_json(dashboard))
    print(f"wrote {dashboard.file}")
