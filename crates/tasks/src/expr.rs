//! Arithmetic expressions: printed with the brackets they need, read back, evaluated exactly, and
//! reduced one written operation at a time.

use crate::steps::Steps;
use std::fmt;

/// An expression of integers.
#[derive(Clone, Debug, PartialEq)]
pub enum Expr {
    /// A number.
    Num(u64),
    /// Left operand, one of `+ - * /`, right operand.
    Op(Box<Expr>, char, Box<Expr>),
}

/// Depth to which brackets may nest in what is read.
const MAX_DEPTH: usize = 32;

impl Expr {
    /// `left op right`.
    pub fn op(left: Expr, op: char, right: Expr) -> Expr {
        Expr::Op(Box::new(left), op, Box::new(right))
    }

    /// Reads an expression; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Expr> {
        let text: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).map(plain_operator).collect();
        let mut reader = Reader { text: &text, at: 0 };
        let expr = reader.sum(0)?;
        (reader.at == text.len()).then_some(expr)
    }

    /// The exact value as a reduced fraction with positive denominator; `None` for a division by zero or overflow.
    pub fn value(&self) -> Option<(i64, i64)> {
        let Expr::Op(left, op, right) = self else {
            return if let Expr::Num(n) = self { Some((i64::try_from(*n).ok()?, 1)) } else { None };
        };
        let ((a, b), (c, d)) = (left.value()?, right.value()?);
        let cross = |x: i64, y: i64| x.checked_mul(y);
        let (n, m) = match op {
            '+' => (cross(a, d)?.checked_add(cross(c, b)?)?, cross(b, d)?),
            '-' => (cross(a, d)?.checked_sub(cross(c, b)?)?, cross(b, d)?),
            '*' => (cross(a, c)?, cross(b, d)?),
            _ if c == 0 => return None,
            _ => (cross(a, d)?.checked_mul(c.signum())?, cross(b, c.checked_abs()?)?),
        };
        let g = gcd(n.unsigned_abs(), m.unsigned_abs()) as i64;
        Some((n / g, m / g))
    }

    /// The numbers, from left to right.
    pub fn numbers(&self) -> Vec<u64> {
        match self {
            Expr::Num(n) => vec![*n],
            Expr::Op(left, _, right) => [left.numbers(), right.numbers()].concat(),
        }
    }

    /// Whether every intermediate result is a whole number of at most `limit`, every divisor has one digit, and
    /// of two factors one is below 10: what [`reduce`](Expr::reduce) can write.
    pub fn is_writable(&self, limit: u64) -> bool {
        let Expr::Op(left, op, right) = self else { return true };
        let whole = |e: &Expr| e.value().filter(|v| v.1 == 1 && (0..=limit as i64).contains(&v.0)).map(|v| v.0);
        let (Some(a), Some(b), Some(_)) = (whole(left), whole(right), whole(self)) else { return false };
        let small = match op {
            '*' => a.min(b) < 10,
            '/' => b < 10,
            _ => true,
        };
        small && left.is_writable(limit) && right.is_writable(limit)
    }

    /// Writes the expression, then its operations one by one with what is left after each; returns the value.
    /// Brackets go first, then `*` and `/`, then from left to right.
    ///
    /// # Panics
    /// If the expression [cannot be written](Expr::is_writable).
    pub fn reduce(&self, steps: &mut Steps) -> u64 {
        let mut expr = self.clone();
        loop {
            steps.line(&expr);
            if let Expr::Num(n) = expr {
                return n;
            }
            let next = expr.next(0).expect("invariant: an expression of operations has one to do next").1;
            let Expr::Op(left, op, right) = &*next else { unreachable!("next is an operation") };
            let (Expr::Num(a), Expr::Num(b)) = (&**left, &**right) else { unreachable!("its operands are numbers") };
            let value = match op {
                '+' => steps.sum(*a, *b),
                '-' => steps.difference(*a, *b),
                '*' => steps.product(*a, *b),
                _ => steps.quotient(*a, *b).0,
            };
            *next = Expr::Num(value);
        }
    }

    /// The operation to do next, with its urgency: depth of brackets, then rank.
    fn next(&mut self, depth: usize) -> Option<((usize, u8), &mut Expr)> {
        let is_num = |e: &Expr| matches!(e, Expr::Num(_));
        if let Expr::Op(left, op, right) = &*self
            && is_num(left)
            && is_num(right)
        {
            return Some(((depth, rank(*op)), self));
        }
        let Expr::Op(left, op, right) = self else { return None };
        let inside = |e: &Expr, right: bool, op| depth + usize::from(needs_brackets(e, op, right));
        let (dl, dr) = (inside(left, false, *op), inside(right, true, *op));
        match (left.next(dl), right.next(dr)) {
            (Some(l), Some(r)) => Some(if r.0 > l.0 { r } else { l }),
            (l, r) => l.or(r),
        }
    }
}

fn rank(op: char) -> u8 {
    u8::from("*/".contains(op))
}

fn needs_brackets(child: &Expr, op: char, right: bool) -> bool {
    let Expr::Op(_, inner, _) = child else { return false };
    rank(*inner) < rank(op) || right && rank(*inner) == rank(op)
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (left, op, right) = match self {
            Expr::Num(n) => return write!(f, "{n}"),
            Expr::Op(left, op, right) => (left, *op, right),
        };
        let child = |f: &mut fmt::Formatter, e: &Expr, right| {
            if needs_brackets(e, op, right) { write!(f, "({e})") } else { write!(f, "{e}") }
        };
        child(f, left, false)?;
        write!(f, "{op}")?;
        child(f, right, true)
    }
}

fn plain_operator(c: char) -> char {
    match c {
        '×' | '·' | 'x' => '*',
        '÷' | ':' => '/',
        '−' | '–' => '-',
        c => c,
    }
}

struct Reader<'a> {
    text: &'a [char],
    at: usize,
}

impl Reader<'_> {
    fn eat(&mut self, any: &str) -> Option<char> {
        let c = *self.text.get(self.at)?;
        any.contains(c).then(|| self.at += 1)?;
        Some(c)
    }

    fn sum(&mut self, depth: usize) -> Option<Expr> {
        let mut left = self.term(depth)?;
        while let Some(op) = self.eat("+-") {
            left = Expr::op(left, op, self.term(depth)?);
        }
        Some(left)
    }

    fn term(&mut self, depth: usize) -> Option<Expr> {
        let mut left = self.atom(depth)?;
        while let Some(op) = self.eat("*/") {
            left = Expr::op(left, op, self.atom(depth)?);
        }
        Some(left)
    }

    fn atom(&mut self, depth: usize) -> Option<Expr> {
        if self.eat("(").is_some() {
            let inner = if depth < MAX_DEPTH { self.sum(depth + 1)? } else { return None };
            self.eat(")")?;
            return Some(inner);
        }
        let start = self.at;
        while self.eat("0123456789").is_some() {}
        let digits: String = self.text[start..self.at].iter().collect();
        digits.parse().ok().map(Expr::Num)
    }
}

/// Greatest common divisor.
pub(crate) fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_prints_and_evaluates() {
        for (text, value, printed) in [
            ("2+3*4", Some((14, 1)), "2+3*4"),
            ("(2+3) × 4", Some((20, 1)), "(2+3)*4"),
            ("10-(4-3)", Some((9, 1)), "10-(4-3)"),
            ("((10)-4)-3", Some((3, 1)), "10-4-3"),
            ("1÷3 - 1", Some((-2, 3)), "1/3-1"),
            ("4/(2-2)", None, "4/(2-2)"),
            ("1/(0-2)", Some((-1, 2)), "1/(0-2)"),
        ] {
            let expr = Expr::parse(text).unwrap();
            assert_eq!((expr.value(), expr.to_string().as_str()), (value, printed));
        }
        for bad in ["", "2+", "(2", "2)", "a", "23+", "99999999999999999999", &"(".repeat(9999)] {
            assert_eq!(Expr::parse(bad), None, "{bad}");
        }
        assert_eq!(Expr::parse("9223372036854775807*9").unwrap().value(), None);
    }

    #[test]
    fn brackets_then_products_then_left_to_right() {
        let mut steps = Steps::default();
        assert_eq!(Expr::parse("9-2+(3+4)*5").unwrap().reduce(&mut steps), 42);
        let lines = steps.into_text();
        assert_eq!(
            lines.lines().collect::<Vec<_>>(),
            [
                "9-2+(3+4)*5",
                "3+4=7",
                "9-2+7*5",
                "7*5=35",
                "9-2+35",
                "9-2=7",
                "7+35",
                "07+35: 7+5+0=2c1 0+3+1=4c0 =42",
                "42"
            ]
        );
    }
}
