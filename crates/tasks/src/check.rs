//! The independent reader of worked steps: every fact is evaluated again from its printed text.
//!
//! It shares no code with the writer. A fact is a token such as `8+2+0=0c1` or `61>56`; a block is a
//! header and the facts that must be its columns; the other lines are known by kind (a sort's states, a
//! count's marks, a search's table). A line of no known form is a fault.

use crate::Expr;
use crate::kinds::numbers;

/// A step that does not hold.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("line {line}, `{text}`: {why}")]
pub struct StepFault {
    /// Line number from 1.
    pub line: usize,
    /// The line.
    pub text: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// Reads the reasoning of a problem of `kind` and evaluates every step; returns the number of facts.
///
/// # Errors
/// The first [`StepFault`].
pub fn check_steps(kind: &str, reasoning: &str) -> Result<usize, StepFault> {
    let mut reader = Reader { kind, lines: reasoning.lines().collect(), facts: 0 };
    for at in 0..reader.lines.len() {
        let text = reader.lines[at];
        reader.line(at, text).map_err(|why| StepFault { line: at + 1, text: text.to_owned(), why })?;
    }
    if reader.lines.is_empty() {
        return Err(StepFault { line: 1, text: String::new(), why: "no steps" });
    }
    Ok(reader.facts)
}

type Found = Result<(), &'static str>;

/// The first two of some numbers.
fn two(numbers: &[u64]) -> Result<[u64; 2], &'static str> {
    numbers.first_chunk().copied().ok_or("fewer than two numbers")
}

/// The last number but one: the quotient of a division's facts.
fn quotient(numbers: &[u64]) -> Result<u64, &'static str> {
    numbers.iter().rev().nth(1).copied().ok_or("no quotient")
}

struct Reader<'a> {
    kind: &'a str,
    lines: Vec<&'a str>,
    facts: usize,
}

impl Reader<'_> {
    /// The line above.
    fn above(&self, at: usize) -> Result<&str, &'static str> {
        at.checked_sub(1).map(|i| self.lines[i]).ok_or("nothing above")
    }

    fn line(&mut self, at: usize, text: &str) -> Found {
        let before = if at > 0 { self.lines[at - 1] } else { "" };
        let (main, found) = if self.kind == "base" { split_off(text) } else { (text, None) };
        if let Some((head, rest)) = main.split_once(": ")
            && head.contains(['+', '-', '*', '/'])
            && head.bytes().all(|b| b.is_ascii_digit() || b"+-*/".contains(&b))
        {
            self.block(head, rest)?;
            self.linked(at, head, before)?;
            return found.map_or(Ok(()), |f| self.collected(at, f));
        }
        let plain = ["add", "sub", "mul", "div", "gcd", "week"].contains(&self.kind) && self.all_facts(text)?;
        match self.kind {
            _ if plain => self.linked(at, text, before),
            "sub" if ["swap, minus", "tausche, minus"].contains(&text) => {
                holds(before.contains('<'), "no smaller digit")
            }
            "sub" => self.compared(text),
            "chain" | "word" => self.expression(at, text),
            "compare" => self.comparison(at, text),
            "sort" => self.sorting(at, text),
            "count" => counting(text),
            "reverse" => reversing(at, text, before),
            "base" => self.basing(at, main, found),
            "time" => self.timing(at, text),
            "week" => walking(text, before),
            "unit" => self.converting(at, text),
            "countdown" => self.searching(at, text),
            "deduce" => self.deducing(at, text),
            "fathom" | "outside" => holds(text.contains(": "), "no topic"),
            _ => Err("no known form"),
        }
    }

    /// Whether all tokens are facts; an error if one is false.
    fn all_facts(&mut self, text: &str) -> Result<bool, &'static str> {
        for token in text.split_whitespace() {
            match fact(token) {
                Some(true) => self.facts += 1,
                Some(false) => return Err("a fact is false"),
                None => return Ok(false),
            }
        }
        Ok(!text.is_empty())
    }

    fn facts_only(&mut self, text: &str) -> Found {
        let all = self.all_facts(text)?;
        holds(all, "not a list of facts")
    }

    /// A header, its columns from the right (division: from the left), and the result that they give.
    fn block(&mut self, head: &str, rest: &str) -> Found {
        let (facts, result) = rest.rsplit_once(" =").ok_or("a block without a result")?;
        self.facts_only(facts)?;
        let facts: Vec<Vec<u64>> = facts.split(' ').map(numbers).collect();
        let op = head.chars().find(|c| !c.is_ascii_digit()).ok_or("no operation")?;
        let (a, b) = head.split_once(op).ok_or("no operation")?;
        let digits = |t: &str| -> Vec<u64> { t.bytes().map(|d| u64::from(d.wrapping_sub(b'0'))).collect() };
        let from_right = |t: &str| digits(t).into_iter().rev().collect::<Vec<_>>();
        let mut made = vec![];
        let mut carry = 0;
        match op {
            '+' | '-' => {
                holds(a.len() == b.len() && facts.len() == a.len(), "columns do not match the header")?;
                for (f, (p, q)) in facts.iter().zip(from_right(a).into_iter().zip(from_right(b))) {
                    holds(f.len() == 5 && f[..3] == [p, q, carry], "a column's operands are not the header's")?;
                    made.push(f[3]);
                    carry = f[4];
                }
                holds(op == '+' || carry == 0, "a borrow is left over")?;
            }
            '*' => {
                let (d, add) = b.split_once('+').unwrap_or((b, "0"));
                carry = add.parse().map_err(|_| "no digit to add")?;
                holds(facts.len() == a.len() && d.len() == 1, "columns do not match the header")?;
                for (f, p) in facts.iter().zip(from_right(a)) {
                    holds(
                        f.len() == 5 && f[..2] == [p, digits(d)[0]] && f[3] == carry,
                        "a column's operands are not the header's",
                    )?;
                    made.push(f[4] % 10);
                    carry = f[4] / 10;
                }
            }
            _ => {
                holds(facts.len() == a.len() && b.len() == 1, "columns do not match the header")?;
                for (f, p) in facts.iter().zip(digits(a)) {
                    holds(
                        f.len() == 4 && f[..2] == [carry.wrapping_mul(10).wrapping_add(p), digits(b)[0]],
                        "a step's operands are not the header's",
                    )?;
                    holds(f[2] < 10, "a quotient digit above 9")?;
                    made.insert(0, f[2]);
                    carry = f[3];
                }
                return holds(numbers(result) == [number(&made), carry], "the result is not the columns'");
            }
        }
        made.extend([carry % 10, carry / 10]);
        holds(numbers(result) == [number(&made)], "the result is not the columns'")
    }

    /// The operands must be those that the lines above name.
    fn linked(&self, at: usize, head: &str, before: &str) -> Found {
        let now = numbers(head);
        let first = numbers(self.lines[0].split(": ").next().unwrap_or(""));
        match self.kind {
            "sub" => {
                let [a, b] = two(&first)?;
                let pair = if at == 2 { [b, a] } else { [a, b] };
                holds(at > 0 && two(&now)? == pair, "not the numbers compared")
            }
            "gcd" if at == 0 => Ok(()),
            "gcd" if head.contains('>') || shape(head) == "n=n" => {
                let rest = *numbers(before).last().ok_or("nothing above")?;
                let [_, smaller] = two(&numbers(self.lines[at.checked_sub(2).ok_or("nothing above")?]))?;
                holds(now == [smaller.max(rest), smaller.min(rest)], "not the pair left over")
            }
            "gcd" => holds(two(&now)? == two(&numbers(before))?, "not the pair above"),
            "time" => {
                let [h, m, start_h, start_m] = first[..] else { return Err("no two times above") };
                let todo = if m < start_m {
                    vec![[h, 1], [m, 60], [m.wrapping_add(60), start_m], [h.wrapping_sub(1), start_h]]
                } else {
                    vec![[m, start_m], [h, start_h]]
                };
                let wanted = at.checked_sub(2).and_then(|i| todo.get(i)).ok_or("a line too early or too many")?;
                holds(two(&now)? == *wanted, "not the numbers above")
            }
            _ => Ok(()),
        }
    }

    /// `0800 4136: 0<4`: digit by digit until they differ.
    fn compared(&mut self, text: &str) -> Found {
        let (pair, facts) = text.split_once(": ").ok_or("no known form")?;
        let (a, b) = pair.split_once(' ').ok_or("no pair")?;
        self.facts_only(facts)?;
        let pairs = a.chars().zip(b.chars()).filter(|(x, _)| x.is_ascii_digit());
        let mut told = facts.split(' ');
        for (x, y) in pairs {
            let fact = told.next().ok_or("a digit is missing")?;
            holds(fact.starts_with(x) && fact.ends_with(y), "not the digits above")?;
            if x != y {
                break;
            }
        }
        holds(a.len() == b.len() && told.next().is_none(), "compared beyond the difference")
    }

    /// Facts, or expressions that all have the value of the first line.
    fn expression(&mut self, at: usize, text: &str) -> Found {
        if at > 0 && self.all_facts(text)? {
            return Ok(());
        }
        let value = |t: &str| Expr::parse(t).and_then(|e| e.value());
        let same = value(text).is_some() && value(text) == value(self.lines[0]);
        holds(same, "the expression has another value")
    }

    fn comparison(&mut self, at: usize, text: &str) -> Found {
        let words: Vec<&str> = text.split(' ').collect();
        match (at, &words[..]) {
            (0, ["want" | "gesucht", "max" | "min"]) => Ok(()),
            (1, _) => self.compared(text),
            (2, ["max", side]) => {
                let left = ["left", "links"].contains(side);
                holds(self.lines[1].contains('>') == left, "not the larger side")
            }
            (3, [want, side, answer]) => {
                let larger = self.lines[2].trim_start_matches("max ") == *side;
                holds(self.lines[0].ends_with(want) && (*want == "max") == larger, "not the wanted side")?;
                let left = ["left", "links"].contains(side);
                let pair = self.lines[1].split(": ").next().unwrap_or("").split_once(' ').ok_or("no pair")?;
                let printed = if left { pair.0 } else { pair.1 };
                let value = |t: &str| t.replace(',', ".").parse::<f64>().ok();
                holds(value(printed) == value(answer), "not the number on that side")
            }
            _ => Err("no known form"),
        }
    }

    /// States `done | rest` in odd lines, walks with the best so far between them.
    fn sorting(&mut self, at: usize, text: &str) -> Found {
        let max = self.lines[0].ends_with("max");
        let state =
            |t: &str| -> Option<(Vec<u64>, Vec<u64>)> { t.split_once('|').map(|(d, r)| (numbers(d), numbers(r))) };
        if at == 0 {
            return holds(
                text.ends_with("take max") || text.ends_with("take min") || text.contains("nimm m"),
                "no order",
            );
        }
        let Some((done, rest)) = state(text) else {
            let (_, rest) = state(self.lines[at - 1]).ok_or("a walk without a list")?;
            let (walk, best) = text.split_once(": ").ok_or("a walk without a result")?;
            self.facts_only(walk)?;
            let mut so_far = *rest.first().ok_or("an empty list")?;
            let told: Vec<Vec<u64>> = walk.split_whitespace().map(numbers).collect();
            holds(told.len() + 1 == rest.len(), "the walk is too short or too long")?;
            for (pair, n) in told.iter().zip(&rest[1..]) {
                holds(pair[..] == [so_far, *n], "the walk does not follow the list")?;
                so_far = if max { so_far.max(*n) } else { so_far.min(*n) };
            }
            return holds(numbers(best) == [so_far], "not the best");
        };
        if at == 1 {
            return holds(done.is_empty(), "something is sorted already");
        }
        let (mut was, mut list) = state(self.lines[at - 2]).ok_or("no list before")?;
        let best = *numbers(self.lines[at - 1]).last().ok_or("no best before")?;
        was.push(best);
        list.retain(|n| *n != best);
        holds((was, list) == (done, rest), "an item is lost, moved or new")
    }

    /// Remainders gathered behind `|`: the newest in front of those of the line above, whose quotient is divided on.
    fn collected(&self, at: usize, found: &str) -> Found {
        let of = |line: usize| numbers(split_off(self.lines[line]).0);
        if at > 0 {
            let (now, above) = (of(at), of(at - 1));
            holds(two(&now)? == [quotient(&above)?, two(&above)?[1]], "not the quotient above")?;
        }
        let last = at + 1 == self.lines.len();
        holds(last == (quotient(&of(at))? == 0), "ends before or after a quotient of 0")?;
        let above = if at > 0 { split_off(self.lines[at - 1]).1.unwrap_or("") } else { "" };
        let main = split_off(self.lines[at]).0;
        let rest = *numbers(main).last().ok_or("no remainder")?;
        holds(found == format!("{rest}{above}"), "the digits gathered are wrong")
    }

    /// Into a base: facts and gathered digits. Back: `value | digits left`, then value times base plus digit.
    fn basing(&mut self, at: usize, main: &str, found: Option<&str>) -> Found {
        if let Some(found) = found {
            if main.contains('=') {
                self.facts_only(main)?;
                return self.collected(at, found);
            }
            let digits = split_off(self.lines[0]).1.unwrap_or("");
            holds(digits.ends_with(found), "not the digits left")?;
            return match at {
                0 => holds(main == "0", "starts at 0"),
                1 => {
                    let all = self.lines[0].get(4..).ok_or("no digits above")?;
                    holds(found.len() + 1 == all.len() && all.starts_with(main), "not the first digit")
                }
                _ => holds(numbers(self.lines[at - 1]).last() == numbers(main).first(), "not the value above"),
            };
        }
        if self.all_facts(main)? {
            let (_, digits) = split_off(self.above(at)?);
            let used = digits.and_then(|d| d.chars().next()).and_then(|c| c.to_digit(10)).map(u64::from);
            return holds(numbers(main).get(3).copied() == used || used == Some(0), "not the next digit");
        }
        holds(numbers(self.above(at)?).last() == numbers(main).first(), "not the value above")
    }

    fn timing(&mut self, at: usize, text: &str) -> Found {
        let first = numbers(self.lines[0]);
        match at {
            0 => holds(first.len() == 4 && text.contains(" - "), "no two times"),
            1 => {
                let (fact, word) = text.split_once(": ").ok_or("no decision")?;
                self.facts_only(fact)?;
                let borrow = ["borrow", "leihe"].contains(&word);
                let [_, minutes, _, others] = first[..] else { return Err("no two times above") };
                holds(numbers(fact) == [minutes, others] && fact.contains('<') == borrow, "not the minutes above")
            }
            _ if text.ends_with(" min") => {
                let result = |line: &str| numbers(line).last().copied();
                let wanted = [result(self.lines[at - 1]), result(self.lines[at - 2])];
                holds(numbers(text).iter().map(|n| Some(*n)).eq(wanted), "not the results above")
            }
            _ => {
                self.facts_only(text)?;
                self.linked(at, text, self.lines[at - 1])
            }
        }
    }

    fn converting(&mut self, at: usize, text: &str) -> Found {
        if at > 0 {
            return self.facts_only(text);
        }
        const FACTORS: &str = " 1 h = 60 min, 1 min = 60 s, 1 days = 24 h, 1 Tage = 24 h, 1 weeks = 7 days, 1 Wochen = 7 Tage, \
            1 years = 12 months, 1 Jahre = 12 Monate, 1 cm = 10 mm, 1 m = 100 cm, 1 km = 1000 m, 1 kg = 1000 g, 1 t = 1000 kg, \
            1 l = 1000 ml, 1 euros = 100 cents, 1 Euro = 100 Cent,";
        self.facts += 1;
        holds(FACTORS.contains(&format!(" {text},")), "not a known unit")
    }

    /// `8 3 7 -> 29`, then `?29 7: facts`, then `8 3 ?22 ?36: facts`, with `!` and an expression where the search ends.
    fn searching(&mut self, at: usize, text: &str) -> Found {
        let sorted = |mut n: Vec<u64>| {
            n.sort_unstable();
            n
        };
        let goal = numbers(self.lines[0]);
        holds(goal.len() == 4, "not three numbers and a target")?;
        if at == 0 {
            return Ok(());
        }
        let (given, target) = (sorted(goal[..3].to_vec()), goal[3]);
        let Some((head, facts)) = text.split_once(": ") else {
            let (expr, value) = text.rsplit_once('=').ok_or("no target")?;
            let expr = Expr::parse(expr).ok_or("no expression")?;
            let found = self.lines[at - 1].ends_with(" !") && value == target.to_string();
            let hits = sorted(expr.numbers()) == given && expr.value() == Some((target as i64, 1));
            return holds(found && hits, "misses the target");
        };
        let facts = facts.trim_end_matches(" !");
        let stated: Vec<&str> = facts.split(' ').filter(|f| !f.starts_with('=')).collect();
        let numbers_of_head = numbers(head);
        let operands = &two(&numbers_of_head)?;
        if head.starts_with('?') {
            holds(operands[0] == target && given.contains(&operands[1]), "not the target or number given")?;
        } else {
            let (above, made) = self.lines[at - 1].split_once(": ").ok_or("no table above")?;
            let aside = numbers(above);
            two(&aside)?;
            let wanted: Vec<u64> = values(made, &aside).collect();
            holds(numbers_of_head[2..] == wanted, "not the values wanted above")?;
            holds(sorted([&operands[..], &aside[1..]].concat()) == given, "not the numbers given")?;
            let hits = values(facts, operands).filter(|v| wanted.contains(v)).count();
            holds(hits == usize::from(text.ends_with(" !")), "a hit is missed or invented")?;
        }
        let of_head = |f: &&str| two(&numbers(f)).is_ok_and(|f| sorted(f.to_vec()) == sorted(operands.to_vec()));
        let strangers = stated.iter().filter(|f| !of_head(f)).count();
        let long_division = facts.matches(" =").count();
        holds(strangers == 2 * long_division, "not the operands of the line")?;
        self.facts_only(&stated.join(" "))
    }

    fn deducing(&mut self, at: usize, text: &str) -> Found {
        let (_, bound) = self.lines[0].rsplit_once(": ").ok_or("no bound")?;
        let sign = if bound == "max" { '<' } else { '>' };
        let told: Vec<(&str, &str)> =
            self.lines.get(1).map_or(vec![], |l| l.split(' ').filter_map(|t| t.split_once(sign)).collect());
        // Whom the chain has reached: the last relation's second, at first the first one told.
        let reached = match self.lines.get(2..at.max(2)).unwrap_or_default().last().and_then(|l| l.split_once(sign)) {
            Some((_, winner)) => Some(winner),
            None => told.first().map(|t| t.0),
        };
        match (at, text.split_once(": ")) {
            (0, _) => holds(["max", "min"].contains(&bound), "no bound"),
            (1, _) => holds(told.len() == text.split(' ').count(), "not relations"),
            (_, Some((name, word))) => {
                holds(word == bound && reached == Some(name), "not whom the chain has reached")?;
                holds(told.iter().all(|t| t.0 != name), "loses to another")
            }
            (_, None) => {
                let pair = text.split_once(sign).ok_or("no known form")?;
                self.facts += 1;
                holds(told.contains(&pair) && reached == Some(pair.0), "no relation told of whom the chain has reached")
            }
        }
    }
}

fn holds(fine: bool, why: &'static str) -> Found {
    if fine { Ok(()) } else { Err(why) }
}

/// `main | found` apart.
fn split_off(text: &str) -> (&str, Option<&str>) {
    text.split_once(" | ").map_or((text, None), |(m, f)| (m, Some(f)))
}

/// Digits from the right as a number.
fn number(from_right: &[u64]) -> u64 {
    from_right.iter().rev().fold(0u64, |n, d| n.wrapping_mul(10).wrapping_add(*d))
}

/// A token with every numeral replaced by `n`.
fn shape(token: &str) -> String {
    let mut shape = String::new();
    for c in token.chars() {
        let c = if c.is_ascii_digit() { 'n' } else { c };
        if c != 'n' || !shape.ends_with('n') {
            shape.push(c);
        }
    }
    shape
}

/// Whether a token states a truth; `None` if it states nothing.
fn fact(token: &str) -> Option<bool> {
    let shape = shape(token);
    Some(match (shape.as_str(), &numbers(token)[..]) {
        ("n<n", [a, b]) => a < b,
        ("n>n", [a, b]) => a > b,
        ("n=n", [a, b]) => a == b,
        ("n+n=n", [a, b, c]) => a.checked_add(*b) == Some(*c),
        ("n-n=n", [a, b, c]) => b.checked_add(*c) == Some(*a),
        ("n*n=n", [a, b, c]) => a.checked_mul(*b) == Some(*c),
        ("n=n*n+n", [a, b, c, d]) => b.checked_mul(*c).and_then(|p| p.checked_add(*d)) == Some(*a),
        ("n*n=n+n=n", [a, b, c, d, e]) => a.checked_mul(*b) == Some(*c) && c.checked_add(*d) == Some(*e),
        ("n+n+n=ncn", [a, b, c, d, e]) => {
            *d < 10 && [*a, *b, *c, *e].iter().all(|x| *x < 10) && a + b + c == d + 10 * e
        }
        ("n-n-n=nbn", [a, b, c, d, e]) => {
            *d < 10 && [*a, *b, *c].iter().all(|x| *x < 10) && *e < 2 && a + 10 * e == b + c + d
        }
        ("n/n=nrn", [a, d, q, r]) => r < d && q.checked_mul(*d).and_then(|p| p.checked_add(*r)) == Some(*a),
        _ => return None,
    })
}

/// The whole values that a search's facts make of two operands, in order; of a long division only its result counts.
fn values<'a>(facts: &'a str, operands: &'a [u64]) -> impl Iterator<Item = u64> + 'a {
    facts.split(' ').filter_map(|fact| match numbers(fact)[..] {
        [q, 0] if fact.starts_with('=') => Some(q),
        [a, b, q, 0] if [a, b] == operands[..2] || [b, a] == operands[..2] => Some(q),
        [_, _, value] => Some(value),
        _ => None,
    })
}

/// `r: s.0 t.0 r+1`.
fn counting(text: &str) -> Found {
    let (letter, marks) = text.split_once(": ").ok_or("no letter")?;
    let mut count = 0;
    for mark in marks.split(' ') {
        let found = mark.starts_with(letter);
        count += u64::from(found);
        let sign = if found { '+' } else { '.' };
        holds(mark.chars().nth(1) == Some(sign) && numbers(mark) == [count], "a mark or count is wrong")?;
    }
    holds(letter.len() == 1, "no letter")
}

/// `1a 2b 3c`, then `3c 2b 1a`.
fn reversing(at: usize, text: &str, before: &str) -> Found {
    let tokens: Vec<&str> = text.split(' ').collect();
    let counted = tokens.iter().zip(1..).all(|(t, n)| t.len() == 2 && numbers(t) == [n]);
    let mut turned: Vec<&str> = before.split(' ').collect();
    turned.reverse();
    holds(at == 0 && counted || at == 1 && turned == tokens, "the letters are not in order")
}

/// `forward 2: Tuesday 0 Wednesday 1 Thursday 2`.
fn walking(text: &str, before: &str) -> Found {
    const WEEKS: [&str; 2] = [
        "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag",
    ];
    let (head, walk) = text.split_once(": ").ok_or("no known form")?;
    let back = head.starts_with("back") || head.starts_with("rückwärts");
    let words: Vec<&str> = walk.split(' ').collect();
    let week: Vec<&str> = WEEKS.iter().find(|w| w.contains(words[0])).ok_or("no weekday")?.split(' ').collect();
    let rest = numbers(head);
    let days = rest.first().ok_or("no number of days")?;
    let all = (words.len() / 2) as u64 == days.saturating_add(1) && words.len().is_multiple_of(2);
    holds(rest.last() == numbers(before).last() && all, "not the remainder above")?;
    let start = week.iter().position(|d| *d == words[0]).ok_or("no weekday")?;
    let right = words.chunks(2).enumerate().all(|(n, pair)| {
        let day = if back { week[(start + 7 - n % 7) % 7] } else { week[(start + n) % 7] };
        pair[..] == [day, &n.to_string()]
    });
    holds(right, "a day is wrong")
}
