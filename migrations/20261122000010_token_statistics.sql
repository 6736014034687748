-- Makes the planner expect ten tokens per user. If most users have one token, the planner rates every index that begins
-- with user_id as good as the primary key (user_id, id). It then reads all tokens of a user who has thousands.
ALTER TABLE tokens ALTER COLUMN user_id SET (n_distinct = -0.1);
ANALYZE tokens;
