'use client';
import { Failure } from '../components/ui.tsx';

export default function ErrorPage({ error, reset }: { error: Error; reset: () => void }) {
  return (
    <main className="grid min-h-dvh place-items-center">
      <Failure error={error} onRetry={reset} />
    </main>
  );
}
