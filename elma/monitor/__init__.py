"""`elma monitor`: what devices report of themselves over MQTT, shown to Prometheus."""
