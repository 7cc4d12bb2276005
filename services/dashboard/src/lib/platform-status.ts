import type { PlatformStatus } from '@holdfast/contracts';
import { useQuery } from '@tanstack/react-query';
import { api } from './api.ts';

/** How the platform is; every page asks, for its banner and its counts. */
export function usePlatformStatus(refreshMs = 5_000) {
  return useQuery({
    queryKey: ['status'],
    queryFn: ({ signal }) => api<PlatformStatus>('/v1/x/status', { signal }),
    refetchInterval: refreshMs,
  });
}

/** What the platform has, as far as pages need to know it. */
interface Capabilities {
  readonly harnesses: readonly { readonly type: string; readonly version: string | null }[];
  readonly file_max_bytes: number;
}

export function useCapabilities() {
  return useQuery({
    queryKey: ['capabilities'],
    queryFn: ({ signal }) => api<Capabilities>('/v1/x/capabilities', { signal }),
    staleTime: 60_000,
  });
}
