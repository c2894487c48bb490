"""Rollouts: observe (`watch`), decide (`assess`), explain (`diagnosis`)."""
