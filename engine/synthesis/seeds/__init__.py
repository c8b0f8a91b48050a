"""Seeds of synthesis (docs/seeds.md): personas, and the tools and rules of a user's own domain, read from files."""
