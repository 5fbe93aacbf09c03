import sys, logging
from tests.simulation.simulation import simulate
def main():
    logging.getLogger("dspool").propagate=False
    for seed in range(int(sys.argv[1]), int(sys.argv[2])):
        h = simulate(seed)
        from collections import Counter
        from tests.simulation.checker import violations
        print(seed, round(h.simulated_s), h.callbacks, len(h.calls), len(h.runs), Counter(c.outcome for c in h.calls.values()), h.errors[:3], h.ready_again_at and round(h.ready_again_at-h.quiet_from), h.digest()[:8], [f["kind"] for f in h.faults][:6]); [print('   ', v) for v in violations(h, slots=h.slots)]
    return 0
