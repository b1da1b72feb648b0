"""Between the two ends: an MQTT v5 session, and brokers to run on this machine.

`session` is one MQTT identity (settings in `settings`, one connection of it in `connection`);
`run` starts a broker as a child process (`mosquitto` or `embedded`). Failures are in `errors`.
"""
