"""Training of the bundled model, from fetching the pictures to the folder that ships.

The extra `fewstep[train]` brings what only training needs. Nothing above imports this.
"""
