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
