import { describe, expect, it } from '@jest/globals';
import { RateLimit } from './rate-limit.ts';

describe('the rate limit', () => {
  it('lets a key burst, then as many through as were agreed, and other keys alone', () => {
    const limit = new RateLimit(60);
    const allowed = (key: string, nowMs: number): boolean => {
      try {
        limit.take(key, nowMs);
        return true;
      } catch {
        return false;
      }
    };
    const burst = Array.from({ length: 30 }, () => allowed('a', 0)).filter(Boolean);
    expect(burst).toHaveLength(10);
    expect(allowed('b', 0)).toBe(true);
    expect(allowed('a', 999)).toBe(false);
    expect(allowed('a', 1_000)).toBe(true);
    const minute = Array.from({ length: 6_000 }, (_, i) => allowed('a', 1_000 + i * 10)).filter(Boolean);
    expect(minute.length).toBeGreaterThanOrEqual(59);
    expect(minute.length).toBeLessThanOrEqual(60);
  });

  it('says when to come again', () => {
    const limit = new RateLimit(6);
    limit.take('a', 0);
    expect(() => limit.take('a', 4_000)).toThrow(
      expect.objectContaining({ kind: 'exhausted', code: 'request.too-many', details: { retryAfterMs: 6_000 } }),
    );
  });
});
