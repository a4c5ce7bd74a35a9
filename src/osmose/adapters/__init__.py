"""Models and data of other libraries; each adapter is imported only when used, and names the extra that it needs."""
