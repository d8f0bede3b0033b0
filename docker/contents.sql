-- Prints every table with its number of rows and a hash over them in which their order plays no part:
--   metrics 4711 0b0c…
-- One statement, so that it sees one state of the database.
select table_name, found[1], md5(found[2])
from (
  select
    table_name,
    (xpath('//count/text()|//sum/text()', query_to_xml(format(
      'select count(*) as count, coalesce(sum((''x'' || left(md5(t::text), 16))::bit(64)::bigint::numeric), 0) as sum
       from %I.%I t', table_schema, table_name), false, false, '')))::text[] as found
  from information_schema.tables
  where table_schema = 'public' and table_type = 'BASE TABLE'
) counted
order by table_name collate "C";
