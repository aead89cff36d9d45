"""Health codes and the rules behind them, metrics, rolling upgrades."""
