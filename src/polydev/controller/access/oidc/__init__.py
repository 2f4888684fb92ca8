"""Sign-in through an OpenID provider or Supabase."""
