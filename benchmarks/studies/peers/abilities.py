"""What each system does when a worker dies, when another size is wanted, and about sessions. From its documentation
and source; not timed here (dspool's own recovery is `benchmarks.recovery`)."""

NO_SESSIONS = "no sessions: state has to be kept elsewhere and routed by hand"

ABILITIES: dict[str, dict[str, str]] = {
    "dspool": {
        "sessions": "measured",
        "recovery": "measured by benchmarks.recovery: replaced by a warm spare, sessions rebuilt from the store",
        "resize": "while it runs, by call or by its optimizer; shrinking drains",
    },
    "actor_pool": {
        "sessions": NO_SESSIONS,
        "recovery": "cannot: a dead actor goes back to the pool and fails what it is given next",
        "resize": "by hand: push() and pop_idle(); it starts and ends no actor by itself",
    },
    "serve_handle": {
        "sessions": NO_SESSIONS,
        "recovery": "a new replica is started; its state is gone, what ran on it fails",
        "resize": "its autoscaler, or a redeployment",
    },
    "process_pool": {
        "sessions": NO_SESSIONS,
        "recovery": "cannot: BrokenProcessPool ends all that waits and runs, and the pool",
        "resize": "cannot: max_workers is fixed",
    },
    "taskiq_redis": {
        "sessions": NO_SESSIONS,
        "recovery": "the process is started again; what it had taken from a list queue is lost",
        "resize": "cannot while it runs: start more workers by hand",
    },
    "fastapi_asyncify": {
        "sessions": NO_SESSIONS,
        "recovery": "uvicorn starts the process again; its connections break, what ran on it fails",
        "resize": "by signal (SIGTTIN, SIGTTOU), one process at a time",
    },
    "litserve": {
        "sessions": NO_SESSIONS,
        "recovery": "by default the whole server shuts down when a worker dies; restart_workers starts it again",
        "resize": "cannot: workers_per_device is fixed",
    },
}
ABILITIES["fastapi_acall"] = ABILITIES["fastapi_asyncify"]
ABILITIES["serve_default"] = ABILITIES["serve_haproxy"] = ABILITIES["serve_handle"]
