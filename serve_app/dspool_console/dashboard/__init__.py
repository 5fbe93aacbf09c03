"""The operations dashboard: `/dashboard`, a page that people keep open.

`dspool_serve.pools.ClusterPool` is what it asks of a pool; `view` makes of the answers what the page shows; `hub`
tells every viewer the same bytes, and asks the pool only while somebody looks; `routes` lists its routes, `login` and
`csrf` say who may pass. The page itself is in `static`, without a build step.
"""
