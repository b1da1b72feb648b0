"""The sending end of releases: checks a model, signs and uploads it, and steers its rollout."""
