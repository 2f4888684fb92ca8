"""Sign-in through OpenID providers and Supabase."""
