create table orders(id integer primary key, customer integer, amount integer, note blob);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 80)
  insert into orders select i * 7919 % 1009, i * 104729 % 211, i * 31 % 997, zeroblob(2000 + i * 53 % 4000) from n;
create index by_customer on orders(customer, amount);
select count(*), sum(amount) from orders where customer between 40 and 60;
select count(*), sum(length(a.note)) from orders a join orders b on b.customer = a.customer + 1 where a.amount < 400;
update orders set amount = amount + 1 where customer % 16 = 3;
delete from orders where amount > 900;
select customer, count(*), max(amount) from orders group by customer order by 3 desc limit 3;
