"""The worker in the cloud: takes over questions that devices could not settle.

    receive -> request_queue, scheduler -> resume -> reply

`agent` puts the parts together and runs them as a process; `training` stands beside all that.
"""
