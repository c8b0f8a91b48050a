"""What a run directory demands of the machine that opens it (demands), the list of what its user accepted (accepted),
and the one way in which commands open a run to execute it (opening). SECURITY.md says what is trusted, what is not."""
