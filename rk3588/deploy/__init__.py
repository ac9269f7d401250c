"""Deployment to a board: facts (a command and a parser), a plan (pure), and apply, which runs exactly the plan."""
