"""Deployment to a board: facts, then a plan, then apply, which runs exactly the plan.

What is asked for       release_spec, release (release_bundle, release_files, programs, units, sizes, agent_zip, layout)
What is there           facts, probes (a command and a parser for each fact), judge (what facts mean), state (releases)
What is to be done      planning (pure), steps, apply, transfer (files), deployment (all of it, for one board)
The way to the board    connection (what every way has), local, ssh/, shell (all quoting), agent_client
What runs on the board  board/: sent there by agent_zip, never imported here but by tests
"""
