//! Arithmetic written out so that every step is a table fact with its operands beside it.
//!
//! One operation is one line: a header with the operands padded to one width, the columns from the
//! right, and the result. `8+2+0=0c1` reads 8+2 and the carry 0 give digit 0, carry 1; `3-6-0=7b1`
//! borrows; `7*6=42+3=45` multiplies and adds the carry, so 5 stays and 4 goes on; `37/8=4r5` is one
//! step of long division. Operands of one digit need no columns: `3+4=7`. The formats are those that a
//! small model was seen to learn; `check` reads them back.

use std::fmt::{Display, Write};

/// The worked reasoning of one problem.
#[derive(Debug, Default)]
pub struct Steps {
    text: String,
}

impl Steps {
    /// Writes one line.
    pub fn line(&mut self, line: impl Display) {
        writeln!(self.text, "{line}").expect("invariant: a string takes any text");
    }

    /// Writes a sum in columns; returns it.
    pub fn sum(&mut self, a: u64, b: u64) -> u64 {
        self.line(sum(a, b));
        a + b
    }

    /// Writes a difference in columns; returns it. `a` is at least `b`.
    pub fn difference(&mut self, a: u64, b: u64) -> u64 {
        self.line(difference(a, b));
        a - b
    }

    /// Writes a product, one partial product for each digit of the shorter factor and their sums; returns it.
    pub fn product(&mut self, a: u64, b: u64) -> u64 {
        let (a, b) = if a < b { (b, a) } else { (a, b) };
        let mut total = 0;
        for (place, &digit) in digits(b).iter().rev().enumerate() {
            self.line(scaled(a, u64::from(digit), 0));
            let partial = a * u64::from(digit) * 10_u64.pow(place as u32);
            if place > 0 {
                self.line(sum(partial, total));
            }
            total += partial;
        }
        total
    }

    /// Writes a long division by a one-digit number; returns quotient and remainder.
    pub fn quotient(&mut self, a: u64, d: u64) -> (u64, u64) {
        self.line(quotient(a, d));
        (a / d, a % d)
    }

    /// The text without its last line end.
    pub fn into_text(mut self) -> String {
        self.text.truncate(self.text.trim_end().len());
        self.text
    }
}

/// Decimal digits, most significant first.
pub fn digits(n: u64) -> Vec<u8> {
    n.to_string().bytes().map(|b| b - b'0').collect()
}

/// Both numbers in the width of the longer.
fn padded(a: u64, b: u64) -> (String, String) {
    let width = digits(a.max(b)).len();
    (format!("{a:0width$}"), format!("{b:0width$}"))
}

/// Pairs of digits from the right.
fn columns<'a>(a: &'a str, b: &'a str) -> impl Iterator<Item = (u8, u8)> + 'a {
    a.bytes().rev().zip(b.bytes().rev()).map(|(x, y)| (x - b'0', y - b'0'))
}

/// One line: `a+b`.
pub fn sum(a: u64, b: u64) -> String {
    if a < 10 && b < 10 {
        return format!("{a}+{b}={}", a + b);
    }
    let (x, y) = padded(a, b);
    let mut line = format!("{x}+{y}:");
    let mut carry = 0;
    for (p, q) in columns(&x, &y) {
        let s = p + q + carry;
        line += &format!(" {p}+{q}+{carry}={}c{}", s % 10, s / 10);
        carry = s / 10;
    }
    line + &format!(" ={}", a + b)
}

/// One line: `a-b`, where `a` is at least `b`.
pub fn difference(a: u64, b: u64) -> String {
    assert!(a >= b, "invariant: a written difference is not negative");
    if a < 10 && b < 10 {
        return format!("{a}-{b}={}", a - b);
    }
    let (x, y) = padded(a, b);
    let mut line = format!("{x}-{y}:");
    let mut borrow = 0;
    for (p, q) in columns(&x, &y) {
        let lent = u8::from(p < q + borrow);
        line += &format!(" {p}-{q}-{borrow}={}b{lent}", p + 10 * lent - q - borrow);
        borrow = lent;
    }
    line + &format!(" ={}", a - b)
}

/// One line: `a*d+add`, `d` and `add` of one digit.
pub fn scaled(a: u64, d: u64, add: u64) -> String {
    let product = |digit: u64, carry: u64| format!("{digit}*{d}={}+{carry}={}", digit * d, digit * d + carry);
    if a < 10 {
        return if add == 0 { format!("{a}*{d}={}", a * d) } else { product(a, add) };
    }
    let mut line = if add == 0 { format!("{a}*{d}:") } else { format!("{a}*{d}+{add}:") };
    let mut carry = add;
    for &digit in digits(a).iter().rev() {
        line += &format!(" {}", product(digit.into(), carry));
        carry = (u64::from(digit) * d + carry) / 10;
    }
    line + &format!(" ={}", a * d + add)
}

/// One line: `a/d` with remainder, `d` of one digit.
pub fn quotient(a: u64, d: u64) -> String {
    if a < 10 {
        return format!("{a}/{d}={}r{}", a / d, a % d);
    }
    let mut line = format!("{a}/{d}:");
    let mut rest = 0;
    for digit in digits(a) {
        let part = 10 * rest + u64::from(digit);
        rest = part % d;
        line += &format!(" {part}/{d}={}r{rest}", part / d);
    }
    line + &format!(" ={}r{rest}", a / d)
}

/// Digits of two equally long numerals compared from the left until they differ: `4=4 1<9`.
pub fn compare(a: &str, b: &str) -> String {
    let mut facts = vec![];
    for (x, y) in a.chars().zip(b.chars()).filter(|(x, _)| x.is_ascii_digit()) {
        let sign = if x < y {
            '<'
        } else if x > y {
            '>'
        } else {
            '='
        };
        facts.push(format!("{x}{sign}{y}"));
        if x != y {
            break;
        }
    }
    facts.join(" ")
}

/// Both numbers padded and compared: `0800 4136: 0<4`.
pub fn compared(a: u64, b: u64) -> String {
    let (x, y) = padded(a, b);
    format!("{x} {y}: {}", compare(&x, &y))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats() {
        assert_eq!(sum(8, 5692), "0008+5692: 8+2+0=0c1 0+9+1=0c1 0+6+1=7c0 0+5+0=5c0 =5700");
        assert_eq!(sum(3, 9), "3+9=12");
        assert_eq!(difference(80, 37), "80-37: 0-7-0=3b1 8-3-1=4b0 =43");
        assert_eq!(scaled(47, 6, 0), "47*6: 7*6=42+0=42 4*6=24+4=28 =282");
        assert_eq!(scaled(18, 2, 1), "18*2+1: 8*2=16+1=17 1*2=2+1=3 =37");
        assert_eq!(quotient(378, 8), "378/8: 3/8=0r3 37/8=4r5 58/8=7r2 =47r2");
        assert_eq!(compared(800, 836), "800 836: 8=8 0<3");
        let mut steps = Steps::default();
        assert_eq!(steps.product(6, 47) + steps.product(47, 36), 282 + 1692);
        assert_eq!(steps.into_text().lines().count(), 4);
    }
}
