import { useSearchParams } from 'next/navigation';

/** A list's filter lives in the address, so that it can be shared, and back and forward walk through it. */
export function useAddress() {
  const params = useSearchParams();
  const set = (change: Readonly<Record<string, string>>, how: 'pushState' | 'replaceState') => {
    const next = new URLSearchParams(params);
    for (const [name, value] of Object.entries(change)) {
      if (value === '' || (name === 'view' && value === 'all')) next.delete(name);
      else next.set(name, value);
    }
    window.history[how](null, '', next.size === 0 ? location.pathname : `?${next}`);
  };
  return { params, set };
}
