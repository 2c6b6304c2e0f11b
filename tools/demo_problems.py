"""Easy problems for the demo, each function followed by its check; make_demo_tasks cuts both to HumanEval's shape."""


def count_vowels(text):
    """Return how many characters of text are vowels (a, e, i, o, u), in either case.

    >>> count_vowels("Hello")
    2
    """
    return sum(character in "aeiou" for character in text.lower())


def check_count_vowels(candidate):
    assert candidate("Hello") == 2
    assert candidate("AEIOU") == 5
    assert candidate("rhythm") == 0
    assert candidate("") == 0


def largest(numbers):
    """Return the largest number in a non-empty list.

    >>> largest([3, 9, 2])
    9
    """
    return max(numbers)


def check_largest(candidate):
    assert candidate([3, 9, 2]) == 9
    assert candidate([-5, -2, -9]) == -2
    assert candidate([7]) == 7


def reverse_words(sentence):
    """Return the words of sentence in reverse order, separated by single spaces.

    >>> reverse_words("one two three")
    'three two one'
    """
    return " ".join(reversed(sentence.split()))


def check_reverse_words(candidate):
    assert candidate("one two three") == "three two one"
    assert candidate("hello") == "hello"
    assert candidate("") == ""


def is_even(number):
    """Return True if number is even, otherwise False.

    >>> is_even(4)
    True
    >>> is_even(7)
    False
    """
    return number % 2 == 0


def check_is_even(candidate):
    assert candidate(4) is True
    assert candidate(7) is False
    assert candidate(0) is True
    assert candidate(-3) is False


def sum_of_squares(numbers):
    """Return the sum of the squares of the numbers in a list.

    >>> sum_of_squares([1, 2, 3])
    14
    """
    return sum(number * number for number in numbers)


def check_sum_of_squares(candidate):
    assert candidate([1, 2, 3]) == 14
    assert candidate([]) == 0
    assert candidate([-4]) == 16


def factorial(n):
    """Return the product of the integers from 1 to n; the factorial of 0 is 1.

    >>> factorial(5)
    120
    """
    product = 1
    for factor in range(2, n + 1):
        product *= factor
    return product


def check_factorial(candidate):
    assert candidate(0) == 1
    assert candidate(1) == 1
    assert candidate(5) == 120
    assert candidate(10) == 3628800


def is_palindrome(text):
    """Return True if text reads the same forwards and backwards.

    >>> is_palindrome("level")
    True
    >>> is_palindrome("python")
    False
    """
    return text == text[::-1]


def check_is_palindrome(candidate):
    assert candidate("level") is True
    assert candidate("python") is False
    assert candidate("") is True
    assert candidate("ab") is False


def celsius_to_fahrenheit(celsius):
    """Return a temperature in degrees Celsius as degrees Fahrenheit.

    >>> celsius_to_fahrenheit(100)
    212.0
    """
    return celsius * 9 / 5 + 32


def check_celsius_to_fahrenheit(candidate):
    assert abs(candidate(100) - 212) < 1e-9
    assert abs(candidate(0) - 32) < 1e-9
    assert abs(candidate(-40) + 40) < 1e-9


def remove_duplicates(items):
    """Return the items of a list without repetitions, in the order of their first appearance.

    >>> remove_duplicates([3, 1, 3, 2, 1])
    [3, 1, 2]
    """
    return list(dict.fromkeys(items))


def check_remove_duplicates(candidate):
    assert candidate([3, 1, 3, 2, 1]) == [3, 1, 2]
    assert candidate(["b", "a", "b"]) == ["b", "a"]
    assert candidate([]) == []


def fibonacci(n):
    """Return the n-th Fibonacci number, where fibonacci(0) is 0 and fibonacci(1) is 1.

    >>> fibonacci(7)
    13
    """
    current, following = 0, 1
    for _ in range(n):
        current, following = following, current + following
    return current


def check_fibonacci(candidate):
    assert candidate(0) == 0
    assert candidate(1) == 1
    assert candidate(2) == 1
    assert candidate(7) == 13
    assert candidate(20) == 6765


def clamp(number, low, high):
    """Return number, or low if it is smaller than low, or high if it is larger than high.

    >>> clamp(12, 0, 10)
    10
    """
    return max(low, min(number, high))


def check_clamp(candidate):
    assert candidate(12, 0, 10) == 10
    assert candidate(-3, 0, 10) == 0
    assert candidate(5, 0, 10) == 5


def count_words(text):
    """Return a dictionary from each word of text to how often it appears.

    >>> count_words("a b a")
    {'a': 2, 'b': 1}
    """
    counts = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def check_count_words(candidate):
    assert candidate("a b a") == {"a": 2, "b": 1}
    assert candidate("") == {}
    assert candidate("one") == {"one": 1}


def second_largest(numbers):
    """Return the second largest of the distinct values in a list, or None if there are fewer than two.

    >>> second_largest([4, 1, 4, 3])
    3
    """
    distinct = sorted(set(numbers))
    return distinct[-2] if len(distinct) > 1 else None


def check_second_largest(candidate):
    assert candidate([4, 1, 4, 3]) == 3
    assert candidate([2, 2]) is None
    assert candidate([]) is None
    assert candidate([-1, -2]) == -2


def flatten(lists):
    """Return one list with the elements of a list of lists, in order.

    >>> flatten([[1, 2], [], [3]])
    [1, 2, 3]
    """
    return [element for inner in lists for element in inner]


def check_flatten(candidate):
    assert candidate([[1, 2], [], [3]]) == [1, 2, 3]
    assert candidate([]) == []
    assert candidate([["a"], ["b"]]) == ["a", "b"]


def is_prime(n):
    """Return True if the integer n is a prime number.

    >>> is_prime(7)
    True
    >>> is_prime(9)
    False
    """
    return n > 1 and all(n % divisor for divisor in range(2, int(n**0.5) + 1))


def check_is_prime(candidate):
    assert [n for n in range(20) if candidate(n)] == [2, 3, 5, 7, 11, 13, 17, 19]
    assert candidate(91) is False
    assert candidate(97) is True


def run_lengths(text):
    """Return the runs of equal characters in text as a list of (character, length) pairs.

    >>> run_lengths("aab")
    [('a', 2), ('b', 1)]
    """
    runs = []
    for character in text:
        if runs and runs[-1][0] == character:
            runs[-1] = (character, runs[-1][1] + 1)
        else:
            runs.append((character, 1))
    return runs


def check_run_lengths(candidate):
    assert candidate("aab") == [("a", 2), ("b", 1)]
    assert candidate("abba") == [("a", 1), ("b", 2), ("a", 1)]
    assert candidate("") == []
