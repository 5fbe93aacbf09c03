// Charts that more than one page draws, as `Plot` takes them.

import { duration, percent, rate } from "../format.js";

export const UTILIZATION = {
  chart: "utilization",
  title: "Utilization",
  top: 1,
  format: (value) => percent(value),
  lines: [{ column: "utilization", label: "slots in use", colour: "--s1", under: true }],
};

export const THROUGHPUT = {
  chart: "throughput",
  title: "Throughput",
  format: (value) => rate(value),
  lines: [{ column: "throughput", label: "served", colour: "--s1", under: true }],
};

export const LATENCY = {
  chart: "latency",
  title: "Latency",
  format: duration,
  lines: [{ column: "p50_s", label: "p50", colour: "--s2" }, { column: "p95_s", label: "p95", colour: "--s1" }, {
    column: "p99_s",
    label: "p99",
    colour: "--s3",
  }],
};

export const ERROR_RATE = {
  chart: "errors",
  title: "Error rate",
  top: 0.002,
  format: (value) => percent(value, 2),
  lines: [{ column: "error_rate", label: "errors and timeouts", colour: "--s-bad", under: true }],
};
