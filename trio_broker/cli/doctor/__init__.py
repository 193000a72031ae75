"""The steps of ``trio-broker doctor``, how they are run, and how they are shown."""
