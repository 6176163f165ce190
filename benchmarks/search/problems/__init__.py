"""Problems that search strategies are compared on without training anything."""
