"""The edge agent: a question's way in and out of a small device.

A question enters over local HTTP (`app`), becomes durable (`outbox`), is read layer by layer
(`inference`), and, where the device cannot settle it, goes to a worker (`offload`, with the life of
one request in `lease`). `agent` wires these together; `service` runs them as a process. Imports
`reader`, `protocol` and `broker`, and nothing of the cloud's side.
"""
