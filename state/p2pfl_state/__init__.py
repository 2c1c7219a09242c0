"""The contract between the two processes of a peer; `state/CONTRACT.md` says it in words."""
