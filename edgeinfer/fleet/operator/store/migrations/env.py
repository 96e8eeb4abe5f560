"""What alembic runs: the steps, on the connection that `migrate` holds."""

from alembic import context

__all__: list[str] = []

if hasattr(context, "config"):  # not where the module is only imported, as by tests of all modules
    context.configure(connection=context.config.attributes["connection"], transaction_per_migration=False)
    context.run_migrations()
