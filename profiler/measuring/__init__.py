"""Fill a latency table: plan, measure, watch for drift; explain where time goes."""
