"""Account deletion."""
